"""Many rows out, in flat memory: ranges of a stream of rows, as rows, objects, frames, candles, sums and gaps."""
