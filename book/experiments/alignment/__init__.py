"""Do pictures and captions align better under M-SAM? Fashion-MNIST and sentences about it, in two towers.

    make alignment DATA=FOLDER                                      both steps, from Fashion-MNIST's four files
    python -m book.experiments.alignment.captions CAPTIONS          the sentences through MiniLM; half a minute
    python -m book.experiments.alignment --data-path FOLDER --captions CAPTIONS --out RUNS --store

Every picture has a caption that says its class, how bright, how wide and how patterned it is. A frozen encoder of
sentences turns captions into vectors; a small network for pictures and a linear map for captions learn to bring the
two of a pair together, by the symmetric contrastive loss. In part of the pairs the caption is that of another picture.

AdamW, SAM and M-SAM over it, and AdamW with twice the steps get grids of as many settings and the same five tuning
seeds; the setting whose worst seed aligns best on validation pictures is run with ten fresh seeds and looked at on
test pictures. Then SAM and M-SAM are run over a range of radii from one common setting. A seed decides weights,
batches, wordings and which pairs are wrong; the split is fixed. All runs of a list train at once, along a leading
axis: the arithmetic is that of ``llqr_sam_ref.SAM`` around ``torch.optim.AdamW``, which tests/experiments check.
"""
