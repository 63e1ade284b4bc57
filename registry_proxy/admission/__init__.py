"""The way into the admin API: names and pages, plain HTTP, logins, and the turns of owners."""
