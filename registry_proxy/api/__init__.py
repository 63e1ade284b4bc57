"""The forms of the JSON API: bodies, documents, endpoints and their description, problems, preconditions."""
