"""Small breakages of the code, each by its intent. `python -m tests.mutants` finds out which tests see them.

`before` is a text that stands once in the Python files of the rooms. `tests` are looked at first, the whole
default layer only if they pass.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One breakage: `before` becomes `after`. slow: the slow test that kills it if no other does."""

    name: str
    before: str
    after: str
    tests: str
    slow: str = ""


PRIOR = [
    Mutant(
        "the causal mask is off by one",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "F.scaled_dot_product_attention(q, k, v, q.new_ones(q.shape[2], q.shape[2]).tril(1).bool())",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the KV cache is stale",
        "keys, values = cache.keys[:, :, : step + 1], cache.values[:, :, : step + 1]",
        "keys, values = cache.keys[:, :, : max(step, 1)], cache.values[:, :, : max(step, 1)]",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the last step is not scored",
        "return log_prob_steps(logits, z).sum(1)",
        "return log_prob_steps(logits, z)[:, :-1].sum(1)",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the prior sees the step that it predicts",
        "before = F.pad(step, (0, 0, 1, 0))[:, :-1]",
        "before = step",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the flag of an empty step comes a step late",
        "nothing = F.pad(~z.whether, (1, 0))[:, :-1]",
        "nothing = F.pad(~z.whether, (2, 0))[:, :-2]",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the sampler forgets the canvas",
        "nothing = ~z.whether[:, t]\n            canvas = canvas + before",
        "nothing = ~z.whether[:, t]\n            canvas = before",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "what and where count at steps that draw nothing",
        "return whether + torch.where(z.whether, choice, 0.0)",
        "return whether + choice",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "the temperature misses where",
        "categorical_sample(self.where_head(h) / temperature, generator)",
        "categorical_sample(self.where_head(h), generator)",
        "tests/nn/test_prior.py",
    ),
    Mutant(
        "dropout does not scale what it keeps",
        "return x * mask.mul_(2**16 / self.kept)",
        "return x * mask",
        "tests/nn",
    ),
]

VAE = [
    Mutant(
        "the baseline of a draw has the draw itself in it",
        "((each - each.mean(0)) * (k / (k - 1)))",
        "(each - each.mean(0))",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "the temperature of relaxed draws does not fall",
        "tau = ramp(done, TAU_START, self.config.tau_end, 1.0)",
        "tau = TAU_START",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "beta is left out of hard steps",
        "weighted = config.beta * eased",
        "weighted = eased",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "the score function has the wrong sign",
        "loss = -(found.log_p - weighted + score)",
        "loss = -(found.log_p - weighted - score)",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "the weight of the parse does not change",
        "weight = ramp(done, config.parse_weight, config.parse_weight_end, 1.0)",
        "weight = config.parse_weight",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "relaxed draws open more than T places",
        "gate = gate * most_open(gate.detach(), steps)",
        "gate = gate * 1.0",
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "the relaxed Bernoulli has one noise for two",
        "torch.sigmoid((logits + first - second) / tau)",
        "torch.sigmoid((logits + first) / tau)",
        "tests/nn/test_relaxations.py",
    ),
    Mutant(
        "the KL of whether is one-sided",
        "off = torch.sigmoid(-q_logits) * (F.logsigmoid(-q_logits) - F.logsigmoid(-p_logits))",
        "off = torch.zeros_like(q_logits)",
        "tests/nn/test_relaxations.py",
    ),
    Mutant(
        "the gradient of the KL of what misses its mean",
        "of_q = (ratio - divergence[..., None]).mul_(q).mul_(gradient)",
        "of_q = ratio.mul_(q).mul_(gradient)",
        "tests/nn/test_relaxations.py",
    ),
    Mutant(
        "the Gaussian KL is off by a half",
        "return (0.5 * (ratio + shift - 1) + p.log_std - self.log_std).sum(-1)",
        "return (0.5 * (ratio + shift) + p.log_std - self.log_std).sum(-1)",
        "tests/nn/test_relaxations.py tests/nn/test_appearance.py",
    ),
    Mutant(
        "a step is not told what it changes in later ones",
        "later = total.flip(1).cumsum(1).flip(1) - total",
        "later = torch.zeros_like(total)",
        "tests/nn/test_objective.py tests/nn/test_layout.py",
    ),
    Mutant(
        "q of a free order is not normalised",
        "(q.whether.gather(1, z.where) * z.whether).sum(1) - log_normalizer(q.whether, self.steps)",
        "(q.whether.gather(1, z.where) * z.whether).sum(1)",
        "tests/nn/test_layout.py tests/nn/test_objective.py",
    ),
    Mutant(
        "the KL of what is averaged where the part decides the order",
        "if self.order.of_places:\n            kl_what",
        "if True:\n            kl_what",
        "tests/nn/test_layout.py tests/nn/test_objective.py",
    ),
    Mutant(
        "the KL of what counts where q draws nothing",
        '"kl_what": drawn * kl_categorical(q.what, p.what),',
        '"kl_what": kl_categorical(q.what, p.what),',
        "tests/nn/test_objective.py",
    ),
    Mutant(
        "the posterior starts at parts that fit worst",
        "self.fit.bias.copy_(-parts.square().sum((1, 2, 3)) / FIT_NOISE)",
        "self.fit.bias.copy_(parts.square().sum((1, 2, 3)) / FIT_NOISE)",
        "tests/nn/test_posterior.py",
    ),
    Mutant(
        "an edit takes the appearance from where the canvas changed",
        "torch.where(F.max_pool2d(differs, 4, ceil_mode=True) == 0, own, joined)",
        "torch.where(F.max_pool2d(differs, 4, ceil_mode=True) != 0, own, joined)",
        "tests/nn/test_appearance.py",
    ),
    Mutant(
        "a subset may have more than T elements",
        "return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True) & (logits > 0)",
        "return logits > 0",
        "tests/nn/test_subsets.py",
    ),
    Mutant(
        "subsets of a sample come in another distribution",
        "left = left - drawn[-1]",
        "left = left - 0 * drawn[-1]",
        "tests/nn/test_subsets.py",
    ),
    Mutant(
        "the mean of a Bernoulli is its logit",
        "chance = self.mean(output)",
        "chance = output.float()",
        "tests/nn/test_likelihoods.py",
    ),
]

COMPLETION = [
    Mutant(
        "a completion changes kept parts",
        "return torch.where(kept, drawn, whether), where, torch.where(kept, part, what), log_weight",
        "return torch.where(kept, drawn, whether), where, what, log_weight",
        "tests/nn/test_completion.py",
    ),
    Mutant(
        "kept parts are drawn a second time",
        "others = z.whether & ~kept.places.gather(1, z.where)",
        "others = z.whether",
        "tests/nn/test_completion.py",
    ),
    Mutant(
        "a visit favours new parts",
        "log_part = self._log_prob(kept, site, with_it, what, parts) - log_q.gather(1, parts) - math.log(m)",
        "log_part = self._log_prob(kept, site, with_it, what, parts) - log_q.gather(1, parts)",
        "tests/nn/test_completion.py",
    ),
    Mutant(
        "particles forget their weights",
        "log_weight, index = log_weight + added, None",
        "log_weight, index = added, None",
        "tests/nn/test_completion.py",
    ),
    Mutant(
        "resampled particles keep their weights",
        "return rows.flatten(), log_weight.masked_fill(few[:, None], 0.0).flatten()",
        "return rows.flatten(), log_weight.flatten()",
        "tests/nn/test_completion.py",
    ),
    Mutant(
        "a part is drawn after the kept one that it precedes",
        "allowed = (keys > self.key[:, None]) & (keys < limit[:, None])",
        "allowed = keys > self.key[:, None]",
        "tests/nn/test_completion.py",
    ),
]

PARSE = [
    Mutant(
        "the greedy parse does not stop at the least gain",
        "return (gain >= self.min_gain) & (gain > 0)",
        "return gain > 0",
        "tests/parse",
    ),
    Mutant(
        "overlapping places are not scored again",
        "self._bound(state, active, place)",
        "pass",
        "tests/parse",
    ),
    Mutant(
        "the parser adds parts up",
        "drawn = torch.maximum(state.canvas.take(pixels), self.parts[state.what[rows, place]].T)",
        "drawn = state.canvas.take(pixels) + self.parts[state.what[rows, place]].T",
        "tests/parse",
    ),
    Mutant(
        "the bound of the lazy parse is no bound",
        "canvas >= 2 * image, 1 + (canvas - 2 * image) / largest, 2 * (canvas - image) / canvas",
        "canvas >= 2 * image, 8 + (canvas - 2 * image) / largest, 8 * (canvas - image) / canvas",
        "tests/parse",
    ),
    Mutant(
        "the gain on a canvas is that of a sum",
        "return (2 * (patch - canvas) - rise).mul_(rise).sum(1)",
        "return (2 * (patch - canvas) - parts[:, :, None]).mul_(rise).sum(1)",
        "tests/parse",
    ),
    Mutant(
        "a parse has more than T parts",
        "if self.steps < self.grid.places:\n            gain.scatter_",
        "if self.steps < 0:\n            gain.scatter_",
        "tests/parse",
    ),
    Mutant(
        "bytes are scored as floats",
        "self.byte_weight = torch.cat([2 * parts / 255, -norms.T], 1)",
        "self.byte_weight = torch.cat([2 * parts, -norms.T], 1)",
        "tests/parse",
    ),
]

BANK = [
    Mutant(
        "the bank is not snapped to patches",
        "return Exemplars(found.patches[pick], found.distances[pick] / 255**2, found.rows[pick])",
        "return Exemplars(found.patches[pick] // 2, found.distances[pick] / 255**2, found.rows[pick])",
        "tests/bank",
    ),
    Mutant(
        "two parts are equal",
        "if chosen[centroid] < 0 and value not in taken:",
        "if chosen[centroid] < 0:",
        "tests/bank",
    ),
    Mutant(
        "the least used parts come first",
        'order = np.argsort(-clusters.sizes, kind="stable")',
        'order = np.argsort(clusters.sizes, kind="stable")',
        "tests/bank",
    ),
    Mutant(
        "an empty cluster stays empty",
        "centroids[empty[0]] = total.farthest[0]",
        "centroids[empty[0]] = centroids[0]",
        "tests/bank",
    ),
    Mutant(
        "parts are added for patches that the bank has",
        "badly = patches[distance > distance.mean()]",
        "badly = patches",
        "tests/bank",
    ),
    Mutant(
        "the sample of patches depends on the order of the blocks",
        "kept = np.argpartition(keys, self.capacity - 1)[: self.capacity]",
        "kept = np.arange(self.capacity)",
        "tests/bank",
    ),
]

DRAWING = [
    Mutant(
        "the canvas is a sum of parts",
        'canvas = canvas.scatter_reduce(2, index, values, "amin" if grid.background else "amax")',
        'canvas = canvas.scatter_reduce(2, index, values, "sum")',
        "tests/core",
    ),
    Mutant(
        "white canvases keep the brightest pixel",
        "more_ink = torch.minimum if grid.background else torch.maximum",
        "more_ink = torch.maximum",
        "tests/core",
    ),
    Mutant(
        "a ranked drawing begins with the smallest gain",
        "return gain.masked_fill(~chosen, -torch.inf).sort(dim=1, descending=True, stable=True).indices",
        "return gain.masked_fill(~chosen, torch.inf).sort(dim=1, descending=False, stable=True).indices",
        "tests/core tests/parse",
    ),
    Mutant(
        "a path goes by the distance from its first place",
        "place = (distances[place[:, 0]] + penalty).argmin(1, keepdim=True)",
        "place = (distances[where[0][:, 0]] + penalty).argmin(1, keepdim=True)",
        "tests/core",
    ),
    Mutant(
        "a region is off by one",
        "mask[top:bottom, left:right] = True",
        "mask[top:bottom, left : right + 1] = True",
        "tests/core",
    ),
    Mutant(
        "a moved part joins what was there",
        "return _merge(old.only((old.where != source) & (old.where != target)), moved, order)",
        "return _merge(old.only(old.where != source), moved, order)",
        "tests/core",
    ),
    Mutant(
        "a full drawing loses the part that an edit adds",
        "old = old.only(old.drawn.cumsum(1) <= steps - new.drawn.sum(1, keepdim=True))",
        "old = old.only(old.drawn.cumsum(1) <= steps)",
        "tests/core",
    ),
]

TRAINING = [
    Mutant(
        "micro-batches share their noise",
        "noise = noise_seed(self.seed, step, index)",
        "noise = noise_seed(self.seed, step, 0)",
        "tests/training",
    ),
    Mutant(
        "gradients of ranks are not scaled to the mean",
        "scale = self.context.world_size / self.config.batch_size",
        "scale = 1 / self.config.batch_size",
        "tests/training",
    ),
    Mutant(
        "ranks average the gradients of a part of a step",
        "if not last and isinstance(self.module, nn.parallel.DistributedDataParallel):",
        "if isinstance(self.module, nn.parallel.DistributedDataParallel):",
        "tests/training",
    ),
    Mutant(
        "the optimizer's state is lost on resume",
        "optimizer.state[parameter][key] = value.to(parameter.device)",
        "pass",
        "tests/training",
    ),
    Mutant(
        "the trained weights are lost on resume where they are averaged",
        'module.load_state_dict({**weights(tensors), **_named(tensors, "trained/")})',
        "module.load_state_dict(weights(tensors))",
        "tests/training",
    ),
    Mutant(
        "the worst checkpoint is handed on",
        'return value if self.order == "max" else -value',
        'return -value if self.order == "max" else value',
        "tests/training",
    ),
    Mutant(
        "a damaged checkpoint is read",
        'if progress.pop("sha256") != sha256(fs.LocalFileSystem(), str(folder / STATE)):',
        'if progress.pop("sha256") == "":',
        "tests/training",
    ),
    Mutant(
        "a step with a broken gradient is taken",
        "return  # the weights stay as they were",
        "pass",
        "tests/training",
    ),
    Mutant(
        "validation has new noise each time",
        "generator.manual_seed(noise_seed(seed, 2**32 - 1, index))",
        "generator.seed()",
        "tests/training",
    ),
    Mutant(
        "training does not end early",
        "return 0 < self.patience <= self._far",
        "return False",
        "tests/training",
    ),
    Mutant(
        "the average begins slow",
        "decay = min(self.decay, (1 + step) / (START + step))",
        "decay = self.decay",
        "tests/training",
    ),
]

DATA = [
    Mutant(
        "the seed of the splits is ignored",
        'digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()',
        'digest = hashlib.blake2b(f"{purpose}".encode(), digest_size=8).digest()',
        "tests/data",
    ),
    Mutant(
        "the seed of a hashed split is ignored",
        'digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()',
        'digest = hashlib.blake2b(f"{purpose}/{name}".encode(), digest_size=8).digest()',
        "tests/data",
    ),
    Mutant(
        "images that share a key are split",
        "return [split_of[number] for number in group.tolist()]",
        "return [split_of[number % len(split_of)] for number in range(len(keys))]",
        "tests/data",
    ),
    Mutant(
        "a split that the source states is not kept",
        'if stated in ("valid", "test"):\n            return stated',
        'if stated == "valid":\n            return stated',
        "tests/data",
    ),
    Mutant(
        "fractions are not nested",
        'return shuffled(items, seed, "fraction")[: max(1, round(fraction * len(items)))]',
        'return shuffled(items, seed, f"fraction {fraction}")[: max(1, round(fraction * len(items)))]',
        "tests/data",
    ),
    Mutant(
        "an image whose id came before is kept",
        "repeated.setdefault(self.names[file], set()).add((high, low))",
        "pass",
        "tests/data tests/pipeline/test_bad_data.py",
    ),
]

STUDIO = [
    Mutant(
        "a wrong token passes",
        'return scheme.lower() == "bearer" and hmac.compare_digest(word.strip().encode(), token.encode())',
        'return scheme.lower() == "bearer"',
        "tests/serve",
    ),
    Mutant(
        "every path is open",
        "if token is None or path in OPEN_PATHS:",
        'if token is None or path.startswith("/"):',
        "tests/serve",
    ),
    Mutant(
        "a body is read without a limit",
        "if seen > limit:",
        "if seen < 0:",
        "tests/serve",
    ),
    Mutant(
        "an upload of any size is decoded",
        "if len(content) > MAX_BYTES:",
        "if len(content) < 0:",
        "tests/serve",
    ),
    Mutant(
        "requests are not counted against the rate",
        "self._buckets[address] = (left - passes, now)",
        "self._buckets[address] = (left, now)",
        "tests/serve",
    ),
]

LEASES = [
    Mutant(
        "the lease of a dead owner never expires",
        "if running is False or (running is None and still and now - since >= DEAD_AFTER_S):",
        "if running is False:",
        "tests/core/test_lease.py",
    ),
    Mutant(
        "a lease is taken from an owner that lives",
        "elif (running or (seen and not still)) and now - started >= self.wait_s:",
        "elif False:",
        "tests/core/test_lease.py",
    ),
    Mutant(
        "an owner does not see that its lease was taken",
        "if generation > self.generation or holder.owner != self.own.owner:",
        "if generation < 0:",
        "tests/core/test_lease.py",
    ),
]

MUTANTS = [*PRIOR, *VAE, *COMPLETION, *PARSE, *BANK, *DRAWING, *TRAINING, *DATA, *STUDIO, *LEASES]
