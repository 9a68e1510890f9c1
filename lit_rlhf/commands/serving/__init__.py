"""A reward over HTTP: what it takes and gives, one request, the thread that scores, and the server around them."""
