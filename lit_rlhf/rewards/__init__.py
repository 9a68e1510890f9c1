"""What scores a response: one small interface, and those that speak it."""
