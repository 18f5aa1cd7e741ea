"""What certificates say, in words: a short table and how it has to be read."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pyro_smat.certificates import Certificate


def certificate_table(certificates: Sequence[Certificate], delta: float) -> str:
    """A short table: quantity, bound, estimate, level and N of every certificate, then what they speak of."""
    rows = [
        {
            "quantity": certificate_name(c),
            "bound": f"{c.bound:.4f}" if c.informative else "uninformative",
            "estimate": f"{c.estimate:.4f}",
            "level": f"{100 * c.level:g}%",
            "N": f"{c.count:,}",
            "method": c.method,
        }
        for c in certificates
    ]
    table = pd.DataFrame(rows).to_string(index=False)
    return "\n".join([table, *certificate_remarks(certificates, delta)])


def certificate_name(certificate: Certificate) -> str:
    """Quantity and loss, e.g. "CVaR (worst 10%) of error"."""
    tail = "" if certificate.rho is None else f" (worst {100 * certificate.rho:g}%)"
    return f"{certificate.quantity}{tail} of {certificate.loss}"


def certificate_remarks(certificates: Sequence[Certificate], delta: float) -> tuple[str, ...]:
    """Sentences on how certificates that share delta have to be read, alike ones once."""
    together = (
        f"All {len(certificates)} hold at once with probability {100 * (1 - delta):g}%: they share delta = {delta:g}"
    )
    ranges = [f"{c.loss} is in [{c.loss_range[0]:g}, {c.loss_range[1]:g}]" for c in certificates]
    notes = [c.note for c in certificates if c.note]
    sentences = [
        f"{together} (Bonferroni)." if len(certificates) > 1 else "",
        *(f"{text}." for text in dict.fromkeys(ranges)),
        *(f"About {c.population}." for c in certificates),
        *(f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(notes)),
    ]
    return tuple(s for s in dict.fromkeys(sentences) if s)
