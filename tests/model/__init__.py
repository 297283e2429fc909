"""A model of the documents, and what plays random cases against a server and the model; see README.md."""
