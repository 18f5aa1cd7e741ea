"""The eight domains of the suite, one file each: what a package holds -> 64 px RGB pictures with classes.

To add one, write a file with a `Domain`, name it here, and give it a file in ``splits/``.
"""

from domains.aenigma import AENIGMA_DOMAIN
from domains.clipart import CLIPART_DOMAIN
from domains.digits import FASHION_DOMAIN, MNIST_DOMAIN
from domains.emoji import EMOJI_DOMAIN
from domains.glyph import GLYPH_DOMAIN
from domains.texture import TEXTURE_DOMAIN
from domains.tuxpaint import TUXPAINT_DOMAIN

DOMAINS = {
    domain.name: domain
    for domain in (
        EMOJI_DOMAIN,
        GLYPH_DOMAIN,
        TEXTURE_DOMAIN,
        CLIPART_DOMAIN,
        AENIGMA_DOMAIN,
        FASHION_DOMAIN,
        MNIST_DOMAIN,
        TUXPAINT_DOMAIN,
    )
}
