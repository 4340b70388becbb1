"""Pictures that a run or a comparison makes: where they are kept, and sheets of them."""
