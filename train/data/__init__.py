"""The utterances of a corpus: their labels and features, cut into train, dev and test, in batches."""
