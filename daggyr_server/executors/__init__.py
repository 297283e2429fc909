"""How attempts are carried out: one interface (`base`), and for each executor a file or a folder.

Entry points name the executors.
"""
