"""How it is run: settings, servers, the process tree and the client for applications."""
