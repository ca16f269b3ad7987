"""What a run trains on: the labelled utterances of a corpus, their features, and how they are cut.

labels       label policies: which raw labels make which class
votes        the raters' votes under a policy
utterances   columns of labelled utterances
labelling    a policy applied to a manifest
chosen       which of them a run learns from
protocols    how train, dev and test are cut: folds, dev_part, leakage, fold_files
select       what `--features` and `--views` name
available    the utterances that every feature has
sources      a feature's rows as they are read from the store
inputs       one modality of all utterances, packed in memory
streamed     … or read when a batch needs it: read_ahead, budget
standardizer z-scores of one modality
origin       what a run's config says of its data
dataset      utterances with their inputs, and the batches cut from them: views
memory       what is kept for the next experiments
loading      the dataset of an experiment
"""
