#include "tensors.h"

#include <array>
#include <mutex>

#include "family.h"
#include "layout.h"

namespace andfast::convolution {
namespace {

struct Properties {
  int capability = 0;
  int multiprocessors = 0;
};

// Attributes of a device, asked for once.
Properties properties_of(int device) {
  constexpr int kMaxDevices = 64;
  static std::array<Properties, kMaxDevices> known;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  Properties& p = known.at(device);
  if (p.capability == 0) {
    int major = 0;
    int minor = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    p.capability = 10 * major + minor;
  }
  return p;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d > 0 ? ", " : "") + std::to_string(t.size(d));
  }
  return text + ")";
}

WeightPart::Type weight_type(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16: return WeightPart::Type::kBFloat16;
    case ScalarType::Half: return WeightPart::Type::kHalf;
    case ScalarType::Float: return WeightPart::Type::kFloat;
    default: ANDFAST_CHECK(false, name, " must be bfloat16, float16 or float32"); return {};
  }
}

Dtype dtype_of(ScalarType dtype) {
  ANDFAST_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, "dtype must be bfloat16 or float16");
  return dtype == ScalarType::Half ? Dtype::kHalf : Dtype::kBFloat16;
}

Dtype check_images(const char* name, const Tensor& t) {
  ANDFAST_CHECK(t.is_cuda(), name, " must be on a CUDA device");
  ANDFAST_CHECK(t.dim() == 4, name, " must have shape (N, C, H, W), was ", shape_text(t));
  ANDFAST_CHECK(t.size(1) > 0 && t.size(2) > 0 && t.size(3) > 0, name,
                " must have at least one channel, row and column, was ", shape_text(t));
  const ScalarType type = t.scalar_type();
  ANDFAST_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, name, " must be bfloat16 or float16");
  ANDFAST_CHECK(t.size(0) * t.size(2) * t.size(3) * 4 < int64_t{1} << 31, name,
                " must have fewer than 2^29 pixels in all, was ", shape_text(t));
  return type == ScalarType::Half ? Dtype::kHalf : Dtype::kBFloat16;
}

void check_like(const char* name, const Tensor& t, const Tensor& x) {
  ANDFAST_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), name, " must be on x's device");
  ANDFAST_CHECK(t.scalar_type() == x.scalar_type(), name, " must have x's dtype");
}

void check_size(const char* name, const Tensor& t, std::vector<int64_t> size) {
  bool same = t.dim() == static_cast<int64_t>(size.size());
  std::string text = "(";
  for (size_t d = 0; d < size.size(); ++d) {
    same = same && t.size(static_cast<int64_t>(d)) == size[d];
    text += (d > 0 ? ", " : "") + std::to_string(size[d]);
  }
  ANDFAST_CHECK(same, name, " must have shape ", text, "), was ", shape_text(t));
}

Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width) {
  const std::vector<int64_t> size = {n, channels, height, width};
  return torch::stable::empty({size.data(), size.size()}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor empty_bytes(const Tensor& like, std::vector<int64_t> size) {
  return torch::stable::empty({size.data(), size.size()}, ScalarType::Byte, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

Channels whole(const Tensor& t) {
  const auto channels = static_cast<int32_t>(t.size(1));
  return {t.data_ptr(), channels, channels};
}

Device::Device(const Tensor& t) : guard_(t.get_device_index()) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  stream_ = static_cast<cudaStream_t>(stream);
  const Properties p = properties_of(t.get_device_index());
  capability_ = p.capability;
  multiprocessors_ = p.multiprocessors;
}

int64_t Device::packed_elements(const Shape& shape) const {
  return choose_family(shape, capability_).packed_elements(shape);
}

void Device::pack(const std::vector<PackJob>& jobs) {
  // Runs of jobs that one family packs.
  for (size_t first = 0; first < jobs.size();) {
    const Family& family = choose_family(jobs[first].shape, capability_);
    size_t end = first + 1;
    while (end < jobs.size() && &choose_family(jobs[end].shape, capability_) == &family) {
      ++end;
    }
    STD_CUDA_CHECK(family.pack(&jobs[first], static_cast<int>(end - first), stream_));
    first = end;
  }
}

void Device::launch(const Problem& problem) {
  if (problem.images > 0) {
    STD_CUDA_CHECK(choose_family(shape_of(problem), capability_).launch(problem, multiprocessors_, stream_));
  }
}

Channels Device::channels_last(const Tensor& t) {
  const int64_t n = t.size(0);
  const int64_t channels = t.size(1);
  const int64_t height = t.size(2);
  const int64_t width = t.size(3);
  // Strides of dimensions of one element say nothing.
  const int64_t pixel = width > 1    ? t.stride(3)
                        : height > 1 ? t.stride(2)
                        : n > 1      ? t.stride(0)
                                     : round_up(channels, 8);
  const bool dense = (channels == 1 || t.stride(1) == 1) && (height == 1 || t.stride(2) == width * pixel) &&
                     (n <= 1 || t.stride(0) == height * width * pixel);
  if (dense && channels % 8 == 0 && pixel % 8 == 0 && pixel >= channels && pixel < int64_t{1} << 20 &&
      aligned(t.data_ptr())) {
    return {t.data_ptr(), static_cast<int32_t>(pixel), static_cast<int32_t>(channels)};
  }
  const Tensor copy = empty_channels_last(t, n, round_up(channels, 8), height, width);
  Strided from{t.data_ptr(), {}, {}};
  for (int d = 0; d < 4; ++d) {
    from.size[d] = t.size(d);
    from.stride[d] = t.stride(d);
  }
  STD_CUDA_CHECK(copy_to_channels_last(from, copy.data_ptr(), static_cast<int>(copy.size(1)), stream_));
  copies_.push_back(copy);
  return whole(copy);
}

}  // namespace andfast::convolution
