"""`shared.market`: prices that belong to nobody, in tables beside those of `shared.db`."""

__all__: list[str] = []
