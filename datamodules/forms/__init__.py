"""Forms of rows: one adapter function each, in one ordered table."""

from datamodules.forms.table import FORMS, Form, read_row

__all__ = ["FORMS", "Form", "read_row"]
