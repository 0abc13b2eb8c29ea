# PNG and JPEG in sparcl-device, by the static libjpeg-turbo, libpng and zlib of the machine that is built for. They are used where
# all three are there and link; without them PPM, PGM and packed files are left, and the program says so.
option(SPARCL_IMAGES "read PNG and JPEG where the static libraries are there" ON)
set(SPARCL_IMAGE_LIBRARIES "")
if(SPARCL_IMAGES)
  find_library(SPARCL_LIBJPEG libjpeg.a)
  find_library(SPARCL_LIBPNG libpng16.a)
  find_library(SPARCL_LIBZ libz.a)
  find_path(SPARCL_JPEG_HEADERS jpeglib.h)
  find_path(SPARCL_PNG_HEADERS png.h)
  if(SPARCL_LIBJPEG AND SPARCL_LIBPNG AND SPARCL_LIBZ AND SPARCL_JPEG_HEADERS AND SPARCL_PNG_HEADERS)
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_INCLUDES ${SPARCL_JPEG_HEADERS} ${SPARCL_PNG_HEADERS})
    set(CMAKE_REQUIRED_LIBRARIES ${SPARCL_LIBPNG} ${SPARCL_LIBJPEG} ${SPARCL_LIBZ} m)
    check_cxx_source_compiles("
      #include <cstdio>
      #include <jpeglib.h>
      #include <png.h>
      #ifndef LIBJPEG_TURBO_VERSION
      #error another libjpeg makes other pixels
      #endif
      int main() {
        jpeg_decompress_struct file;
        jpeg_error_mgr errors;
        file.err = jpeg_std_error(&errors);
        jpeg_create_decompress(&file);
        return png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr) == nullptr;
      }" SPARCL_IMAGES_LINK)  # a cross compiler may find the libraries of this machine, which are of no use to it
    unset(CMAKE_REQUIRED_INCLUDES)
    unset(CMAKE_REQUIRED_LIBRARIES)
  endif()
endif()
if(SPARCL_IMAGES AND SPARCL_IMAGES_LINK)
  set(SPARCL_IMAGE_LIBRARIES ${SPARCL_LIBPNG} ${SPARCL_LIBJPEG} ${SPARCL_LIBZ})
  target_compile_definitions(sparcl-device PRIVATE SPARCL_IMAGES)
  target_include_directories(sparcl-device SYSTEM PRIVATE ${SPARCL_JPEG_HEADERS} ${SPARCL_PNG_HEADERS})
  target_link_libraries(sparcl-device PRIVATE ${SPARCL_IMAGE_LIBRARIES})
else()
  message(STATUS "sparcl-device without PNG and JPEG: no static libjpeg-turbo, libpng and zlib (Debian: libjpeg62-turbo-dev libpng-dev)")
endif()
