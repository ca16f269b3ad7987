"""What differs between groups of utterances: effect sizes in a feature's dimensions."""
