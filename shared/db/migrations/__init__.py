"""How the shape of the schema changes: numbered revisions, run by `runner`. Needs the extra `migrations`."""
