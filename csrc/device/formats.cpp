// Which image formats this build reads; without the libraries, what takes their place.
#include <new>

#include "device/images.h"

namespace sparcl {

#ifdef SPARCL_IMAGES
const char* image_formats() { return "PNG, JPEG, PPM, PGM"; }
const char* missing_formats() { return nullptr; }
#else
const char* image_formats() { return "PPM, PGM"; }
const char* missing_formats() { return "PNG and JPEG: build again where the static libjpeg-turbo, libpng and zlib are (Debian: libjpeg62-turbo-dev libpng-dev)"; }

namespace decoding {

namespace {
[[noreturn]] void lack(const Source& source) { refuse(source, std::string("this build does not read ") + missing_formats() + ", or use sparcl pack"); }
}  // namespace

Image read_png(const Source& source, Notes&) { lack(source); }
Image read_jpeg(const Source& source, Notes&) { lack(source); }

}  // namespace decoding
#endif

}  // namespace sparcl
