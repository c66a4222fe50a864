#include "family.h"

namespace andfast::convolution {

const Family& choose_family(const Shape& shape, int capability) {
  constexpr const Family* kFastestFirst[] = {&kWgmmaFamily, &kMmaFamily};
  for (const Family* family : kFastestFirst) {
    if (family->runs_on(capability) && family->supports(shape)) {
      return *family;
    }
  }
  return kMmaFamily;
}

}  // namespace andfast::convolution
