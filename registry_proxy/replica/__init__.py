"""One replica over HTTP: connections, login, requests and answers, the oddities of registries smoothed."""
