"""The forms of a column's values on every way that they take: what a column type says about itself beside binding."""
