"""A reward over HTTP: what it takes and gives, its addresses, and the thread that scores."""
