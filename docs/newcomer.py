"""From class folders to a router that is saved, loaded and used, over fine-tuned timm ViTs: ``python newcomer.py``."""

from pyro_smat import Catalog, CatalogGuide, CatalogPrior, CVaR_ELBO, EpisodeSampler, MetaTrainer, RoutedClassifier
from pyro_smat import RoutedModel, SourceFeatures, SourceLibrary, TaskNetwork, TrainingSettings
from pyro_smat import build_network, glyph_pool, pretrain, read_folder, write_folder

for split in ("train", "validation"):  # leave this out where images/train/<class>/*.png are your own
    write_folder(glyph_pool(split), f"images/{split}", attribute="letter", each=12)
train, held_out = (read_folder("images", size=32, split=split) for split in ("train", "validation"))


def build():
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_network("timm:vit_tiny_patch16_224", arguments=small)  # random weights; no download


def fine_tuned(classes, steps=30):
    network = build()
    network.load_state_dict(base.state_dict())
    return pretrain(network, EpisodeSampler(train, way=5, shot=3, query=3, classes=classes), steps).state_dict()


base, letters = build(), train.class_names[0]
pretrain(base, EpisodeSampler(train, way=5, shot=3, query=3), steps=30)  # or: your own checkpoint
sources = {"base": base.state_dict(), "first": fine_tuned(letters[:37]), "second": fine_tuned(letters[37:])}
library = SourceLibrary.from_state_dicts(build(), sources)  # the first is the fallback

network, catalog = TaskNetwork(build(), library.space), Catalog.k_hot(library.names, max_sources=2)
prior = CatalogPrior(catalog)
model, guide = RoutedModel(network, library, prior=prior), CatalogGuide(catalog, len(library), prior=prior)
sampler, features = EpisodeSampler(train, way=5, shot=3, query=3), SourceFeatures(network, library.basis, train)
settings = TrainingSettings(steps=20, episodes=4, warmup=2)
MetaTrainer(model, guide, elbo=CVaR_ELBO(rho=0.5), sampler=sampler, features=features, settings=settings).fit()
validation = EpisodeSampler(held_out, way=5, shot=3, query=3, seed=1)
RoutedClassifier.from_trained(model, guide, validation=validation).save("router")

task, router = validation.episode(), RoutedClassifier.load("router")
adapted = router.adapt(task.support.images, task.support.labels)
print(adapted.explain(), adapted.predict(task.query.images), task.query.labels.tolist(), sep="\n")
