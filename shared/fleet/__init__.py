"""`shared.fleet`: what belongs to a user of a fleet of bots, in tables beside those of `shared.db`."""

__all__: list[str] = []
