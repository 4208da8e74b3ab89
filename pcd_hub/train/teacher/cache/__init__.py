"""Cache of the teacher's feature maps, so that a frozen teacher sees every view only once.

``records.py`` is the format of a record, ``store.py`` the file of all records, ``key.py`` what a
cache depends on, ``preparing.py`` how its folder is made, ``estimate.py`` its size and whether it
pays, ``targets.py`` what a training step calls, ``folders.py`` what ``pcd-hub cache`` lists.
"""
