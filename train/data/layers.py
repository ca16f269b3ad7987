"""Which features in a store are the layers of one encoder that `layers=all` or `layers=6-9` names."""

import re
from collections.abc import Sequence

from ser.cache.spec import canonical_json
from ser.cache.store import Feature, Store, listed
from ser.errors import MissingRows, WrongUse


def find_layers(store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str) -> list[Feature]:
    """The layers of `feature` that the one of its options that is `layers=…` names, in order, all of one checkpoint.

    The last layer of an encoder that ends in a LayerNorm is the one after it, unless norm=before is asked for.
    `fingerprint` begins that of any layer of the checkpoint. Raises `MissingRows` for what is not in the store,
    `WrongUse` for another form of `layers=` and, naming them, if there are several ways that are complete for the
    corpus, or none is.
    """
    name = f"{feature}:{','.join(options)}"
    named = dict(item.partition("=")[::2] for item in options)
    if not (form := re.fullmatch(r"all|(\d{1,4})-(\d{1,4})", named.pop("layers"))):
        raise WrongUse(f"{name}: write layers=all or a range such as layers=6-9")
    norm = named.pop("norm", "after")
    ways: dict[bytes, dict[int, Feature]] = {}
    for one in (Feature(store.path, folder) for folder in store.folders() if folder.parent.name == feature):
        own = dict(item.partition("=")[::2] for item in one.spec.variant.split(","))
        layer, _ = int(own.pop("layer", -1)), own.pop("norm", "")
        if layer >= 0 and own == named:
            way = ways.setdefault(canonical_json({**one.spec.identity(), "variant": "", "config": {}}), {})
            if layer not in way or one.spec.config.get("norm") == norm:
                way[layer] = one
    found = []
    for way in ways.values():
        deepest = max(way) if form[1] is None else -1  # as far as an earlier version's store says
        last = max(one.spec.provenance.get("layers", deepest) for one in way.values())
        wanted = range(last + 1) if form[1] is None else range(int(form[1]), int(form[2]) + 1)
        layers = [way[layer] for layer in wanted if layer in way]
        other = last in wanted and last in way and way[last].spec.config.get("norm", "none") not in ("none", norm)
        if len(layers) == len(wanted) > 0 and not other:
            found += [layers] if any(one.fingerprint.startswith(fingerprint) for one in way.values()) else []
    if len(found) > 1:
        manifest = store.joined_manifest(corpus)
        found = [layers for layers in found if all(one.complete(manifest) for one in layers)] or found
    if len(found) > 1:
        raise WrongUse(f"{store.path}: {name} is there in several ways, choose one: {listed([w[0] for w in found])}")
    if not found:
        command = f"ser features CORPUS --features {name} --store {store.path}"
        raise MissingRows(f"{store.path}: does not have all of {name}; run `{command}`")
    return found[0]
