"""Loaders: guest images of every supported kind, read into guest memory."""
