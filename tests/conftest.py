"""What tests of all folders share: this file's folder is on the import path, so that they find the modules beside it."""
