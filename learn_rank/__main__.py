"""`python -m learn_rank` and `torchrun -m learn_rank`: the command line."""

from learn_rank.cli.main import main

main()
