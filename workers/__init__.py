"""Broker, middleware, poller, actors and the command line; everything here may import `app`."""
