"""The site's side: Intarsia's ClientApp, unchanged; the records are in the node's configuration."""

from intarsia_client.app import app

__all__ = ["app"]
