"""What is asked of tokamax's kernels and made of their results, by tokamax's own XLA forms."""

import attention_cases as cases
import pytest

from pgjax.kernels import flash, on_mesh, triton

base = pytest.importorskip("tokamax._src.ops.attention.base")


@pytest.mark.parametrize("mask", cases.MASKS)
@pytest.mark.parametrize("own", [True, False], ids=["own backward", "triton backward"])
def test_flash_equals_plain(monkeypatch, mask, own):
  from tokamax._src.ops.attention import pallas_mosaic_gpu, pallas_mosaic_gpu_vjp

  monkeypatch.setattr(pallas_mosaic_gpu, "PallasMosaicGpuFlashAttention", base.DotProductAttention)
  monkeypatch.setattr(
    pallas_mosaic_gpu_vjp, "PallasMosaicGpuFlashAttentionVjp", base.DotProductAttentionVjp
  )
  monkeypatch.setattr(flash, "own_backward", lambda *sizes: own)
  triton_backward = triton.backward

  def interpreted(*arrays, capability, **how):
    return triton_backward(*arrays, **how)

  monkeypatch.setattr(triton, "backward", interpreted)
  for K, G, H, softcap in ((2, 2, 16, 50.0), (4, 1, 72, 0.0)):
    values = (*cases.arrays(K, G, H, "bfloat16"), cases.MASKS[mask]())
    kernel = on_mesh.Kernel("flash", softcap, "float32", 9.0)
    ours = cases.run(
      lambda q, k, v, seen, kernel=kernel: on_mesh.attend(q, k, v, seen, kernel), *values
    )
    cases.assert_close(ours, cases.run(cases.switched("plain", softcap), *values), 2e-2)
