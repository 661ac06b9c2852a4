"""How the database is: what stands in `report`, looked up by `look`, one file for what each database tells."""
