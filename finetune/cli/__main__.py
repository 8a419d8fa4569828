"""`python -m finetune.cli`: the `finetune` command where no script is on the path."""

from segformer_finetune import main

if __name__ == "__main__":
    main()
