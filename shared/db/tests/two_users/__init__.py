"""What the stateful test of tenancy is made of: a model of the rows, and every way to read and write them."""
