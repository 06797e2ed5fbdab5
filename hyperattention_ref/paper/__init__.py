"""The paper, one item per file: Definition 1, Algorithms 1 to 4, Lemma 2, and the sums over rows they are made of."""
