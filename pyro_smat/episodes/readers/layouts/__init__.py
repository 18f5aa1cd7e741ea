"""Layouts of published data sets, each read as it is unpacked: ``[data] kind = "cifar_fs"``, ``path`` its folder.

A layout is one function in one file that takes ``path``, ``split``, ``size`` and ``channels`` and returns an
:class:`~pyro_smat.episodes.pool.ImagePool`::

    @register("layout", "my_layout")
    def my_layout(path, split, size, channels): ...

Pickles are never unpickled: :func:`pyro_smat.files.pickled_arrays.read_pickled_arrays` reads data out of them.
"""
