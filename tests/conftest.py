"""What every test can use: the servers, and the application's fixtures."""

pytest_plugins = ["tests.servers.plugin", "tests.fixtures"]
