"""From class folders to a router that is saved, loaded and used, over fine-tuned timm ViTs: ``python newcomer.py``."""

import pyro_smat as ps

for split in ("train", "validation"):  # leave this out where images/train/<class>/*.png are your own
    ps.write_folder(ps.glyph_pool(split), f"images/{split}", attribute="letter", each=12)
train, held_out = (ps.read_folder("images", size=32, split=split) for split in ("train", "validation"))


def build():
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return ps.build_network("timm:vit_tiny_patch16_224", arguments=small)  # random weights; no download


def fine_tuned(network, classes=None):
    episodes = ps.EpisodeSampler(train, way=5, shot=3, query=3, classes=classes)
    return ps.pretrain(network, episodes, steps=20).state_dict()


base, first, second = build(), build(), build()
letters, start = train.class_names[0], fine_tuned(base)  # or your own checkpoint: ps.SourceLibrary.from_files
first.load_state_dict(start)
second.load_state_dict(start)
sources = {"base": start, "first": fine_tuned(first, letters[:37]), "second": fine_tuned(second, letters[37:])}
library = ps.SourceLibrary.from_state_dicts(base, sources)  # the first is the fallback

network, catalog = ps.TaskNetwork(base, library.space), ps.Catalog.k_hot(library.names, max_sources=2)
prior = ps.CatalogPrior(catalog)
model = ps.RoutedModel(network, library, prior=prior)
guide = ps.CatalogGuide(catalog, len(library), prior=prior)
episodes, validation = (ps.EpisodeSampler(pool, way=5, shot=3, query=3) for pool in (train, held_out))
features, settings = ps.SourceFeatures(network, library.basis, train), ps.TrainingSettings(steps=20, episodes=10)
ps.MetaTrainer(model, guide, elbo=ps.CVaR_ELBO(rho=0.5), sampler=episodes, features=features, settings=settings).fit()
ps.RoutedClassifier.from_trained(model, guide, validation=validation).save("router")

task, router = validation.episode(), ps.RoutedClassifier.load("router")  # here, or in another process
adapted = router.adapt(task.support.images, task.support.labels)
print(adapted.explain(), adapted.predict(task.query.images), task.query.labels.tolist(), sep="\n")
