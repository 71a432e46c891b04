"""Models: one file per recommender, its name that of the class in lower case, as RecBole looks it up."""
