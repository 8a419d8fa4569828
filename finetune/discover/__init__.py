"""What `init` and `doctor` know of folders, masks and lists of classes.

From below: `values` is what masks and lists hold, `layouts` how folders and names pair, `forms`
what tools and public sets write, `labels` what follows for a recipe. `recognise` asks in turn.
"""
