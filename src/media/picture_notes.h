#pragma once

#include <string>

#include "media/video_reader.h"

namespace calibatt {

/// What PNG, WebP and JPEG files say beside their pixels. FFmpeg knows the turn of a JPEG alone, and not in every
/// version.
struct PictureNotes {
  PictureTurn turn;          ///< by the orientation in their Exif notes
  bool is_animated = false;  ///< a WebP of several pictures, which FFmpeg cannot decode
  bool is_jpeg = false;
  bool is_deep_grey = false;  ///< a PNG of one number of 16 bits a pixel
};

/// bytes: a whole file of any kind. What is damaged says nothing.
PictureNotes read_picture_notes(const std::string& bytes);

}  // namespace calibatt
