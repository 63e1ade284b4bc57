"""The records of access as administrators change them: one file a resource, each change validated and in one commit."""
