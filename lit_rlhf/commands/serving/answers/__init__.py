"""Policies over HTTP, as clients of OpenAI know it: what is taken and given, its addresses, the thread that draws."""
