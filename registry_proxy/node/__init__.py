"""The processes of one node: supervisor, fork server, workers, and the sockets that they share."""
