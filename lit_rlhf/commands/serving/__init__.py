"""Models over HTTP: the server and one request, whatever is asked; scores and answers are folders of their own."""
