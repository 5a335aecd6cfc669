"""What is counted of fused attention, by hand."""

from pgjax.planning import hlo

PROGRAM = """
%body (p: s32[]) -> s32[] {
  %q = bf16[2,128,8,256]{3,2,1,0} parameter(0)
  %k = bf16[2,384,4,256]{3,2,1,0} parameter(1)
  %f = (bf16[2,128,8,256]{3,2,1,0}, f32[2,8,128]{2,1,0}) custom-call(%q, %k), custom_call_target="mosaic_gpu_v2"
  %dq = bf16[2,128,8,256]{3,2,1,0} custom-call(%q, %k), custom_call_target="mosaic_gpu_v2"
  ROOT %dk = (bf16[2,384,4,256]{3,2,1,0}, bf16[2,384,4,256]{3,2,1,0}) custom-call(%q, %k), custom_call_target="mosaic_gpu_v2"
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %w = s32[] while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"26"}}
}
"""  # noqa: E501
OURS = """
ENTRY %main (p: s32[]) -> s32[] {
  %q = bf16[2,128,4,2,72]{4,3,2,1,0} parameter(0)
  %k = bf16[2,384,4,72]{3,2,1,0} parameter(1)
  %f = (bf16[2,128,4,2,72]{4,3,2,1,0}, f32[2,4,2,128]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/jvp(attention_forward)/pallas_call"}
  %dq = (bf16[2,128,4,2,72]{4,3,2,1,0}, f32[2,4,2,128]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="a/attention_backward_queries/pallas_call"}
  ROOT %dk = (bf16[2,384,4,72]{3,2,1,0}, bf16[2,384,4,72]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="a/attention_backward_keys/pallas_call"}
}
"""  # noqa: E501


def test_products_of_kernels_are_counted_in_every_iteration():
  pairs = 2 * 8 * 128 * 384  # Batch, query heads, queries, keys.
  assert hlo.product_flops(PROGRAM) == 26 * (4 + 6 + 8) * pairs * 256


def test_heads_of_our_kernels_are_counted_as_padded():
  assert hlo.product_flops(OURS) == (4 + 6 + 8) * 2 * 8 * 128 * 384 * 80
