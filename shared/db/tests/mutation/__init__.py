"""`python -m shared.db.tests.mutation`: take each guard of the tenancy away in turn, and see a test fail."""
