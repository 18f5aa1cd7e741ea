"""Readers: folders, tables, data sets and glyphs in; an :class:`~pyro_smat.episodes.pool.ImagePool` out.

To add one, write one function in one file that decodes images once and returns a pool; nothing else asks where images
came from. Images that take long to make can be kept in :mod:`~pyro_smat.episodes.readers.array_cache`.
"""
