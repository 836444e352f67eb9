"""What a kilowatt-hour of a country's grid emits: a table of facts.

Grams of CO2 equivalent, averaged over a year, over the life cycle of each source of power. The figures are those of Our
World in Data ("Carbon intensity of electricity generation", from Ember and the Energy Institute; CC BY 4.0,
https://ourworldindata.org/grapher/carbon-intensity-electricity), taken from the tables that codecarbon 3.3.2 carries
(MIT, https://github.com/mlco2/codecarbon) and rounded to a tenth. Territories without a figure from 2021 on, or with a
figure of zero, are left out.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

SOURCE = "Our World in Data, from Ember and the Energy Institute"


class Grid(NamedTuple):
    """A country's electricity."""

    country: str
    grams_per_kwh: float
    """CO2 equivalent."""
    year: int


def suggestion(text: str) -> str:
    """A tail for an error about a code that is not in the table: the country that its writer may have meant."""
    names = {grid.country.casefold(): code for code, grid in GRID.items()}
    words = {**names, **{code.casefold(): code for code in GRID}}
    close = difflib.get_close_matches(text.casefold(), words, n=1, cutoff=0.7) if len(text) > 2 else []
    meant = words[close[0]] if close else None
    wanted = "; wanted a code of three letters (ISO 3166-1 alpha-3), such as 'FRA' for France"
    return wanted if meant is None else f". Did you mean {meant!r} ({GRID[meant].country})?"


_FIGURES: dict[str, tuple[str, float, int]] = {
    "ABW": ("Aruba", 561.2, 2022), "AFG": ("Afghanistan", 132.5, 2022), "AGO": ("Angola", 174.7, 2022),
    "ALB": ("Albania", 24.3, 2022), "ARE": ("United Arab Emirates", 561.1, 2022), "ARG": ("Argentina", 354.1, 2023),
    "ARM": ("Armenia", 264.5, 2022), "ASM": ("American Samoa", 611.1, 2022),
    "ATG": ("Antigua and Barbuda", 611.1, 2022), "AUS": ("Australia", 548.7, 2023), "AUT": ("Austria", 110.8, 2023),
    "AZE": ("Azerbaijan", 671.4, 2022), "BDI": ("Burundi", 250.0, 2022), "BEL": ("Belgium", 138.1, 2023),
    "BEN": ("Benin", 584.1, 2022), "BFA": ("Burkina Faso", 467.5, 2022), "BGD": ("Bangladesh", 691.4, 2023),
    "BGR": ("Bulgaria", 335.3, 2023), "BHR": ("Bahrain", 904.6, 2022), "BHS": ("Bahamas", 660.1, 2022),
    "BIH": ("Bosnia and Herzegovina", 600.0, 2023), "BLR": ("Belarus", 441.7, 2022), "BLZ": ("Belize", 225.8, 2022),
    "BMU": ("Bermuda", 650.8, 2022), "BOL": ("Bolivia", 531.7, 2023), "BRA": ("Brazil", 98.3, 2023),
    "BRB": ("Barbados", 605.5, 2022), "BRN": ("Brunei", 893.9, 2022), "BTN": ("Bhutan", 23.3, 2022),
    "BWA": ("Botswana", 847.9, 2022), "CAN": ("Canada", 170.0, 2023), "CHE": ("Switzerland", 34.8, 2023),
    "CHL": ("Chile", 291.1, 2023), "CHN": ("China", 582.3, 2023), "CIV": ("Cote d'Ivoire", 393.9, 2022),
    "CMR": ("Cameroon", 305.4, 2022), "COD": ("Democratic Republic of Congo", 24.5, 2022),
    "COG": ("Congo", 700.0, 2022), "COK": ("Cook Islands", 250.0, 2022), "COL": ("Colombia", 259.5, 2023),
    "COM": ("Comoros", 642.9, 2022), "CPV": ("Cape Verde", 558.1, 2022), "CRI": ("Costa Rica", 53.4, 2023),
    "CUB": ("Cuba", 637.6, 2022), "CYM": ("Cayman Islands", 642.9, 2022), "CYP": ("Cyprus", 534.3, 2023),
    "CZE": ("Czechia", 449.7, 2023), "DEU": ("Germany", 380.9, 2023), "DJI": ("Djibouti", 692.3, 2022),
    "DMA": ("Dominica", 529.4, 2022), "DNK": ("Denmark", 151.7, 2023), "DOM": ("Dominican Republic", 580.8, 2022),
    "DZA": ("Algeria", 634.6, 2022), "ECU": ("Ecuador", 150.2, 2023), "EGY": ("Egypt", 570.3, 2023),
    "ERI": ("Eritrea", 631.6, 2022), "ESP": ("Spain", 174.1, 2023), "EST": ("Estonia", 416.7, 2023),
    "ETH": ("Ethiopia", 24.6, 2022), "FIN": ("Finland", 79.2, 2023), "FJI": ("Fiji", 288.5, 2022),
    "FLK": ("Falkland Islands", 500.0, 2022), "FRA": ("France", 56.0, 2023), "FRO": ("Faroe Islands", 404.8, 2022),
    "GAB": ("Gabon", 491.6, 2022), "GBR": ("United Kingdom", 237.6, 2023), "GEO": ("Georgia", 167.6, 2023),
    "GHA": ("Ghana", 484.0, 2022), "GIB": ("Gibraltar", 600.0, 2022), "GIN": ("Guinea", 236.8, 2022),
    "GLP": ("Guadeloupe", 500.0, 2021), "GMB": ("Gambia", 666.7, 2022), "GNB": ("Guinea-Bissau", 625.0, 2022),
    "GNQ": ("Equatorial Guinea", 591.8, 2022), "GRC": ("Greece", 336.6, 2023), "GRD": ("Grenada", 640.0, 2022),
    "GRL": ("Greenland", 178.6, 2022), "GTM": ("Guatemala", 328.3, 2022), "GUF": ("French Guiana", 217.8, 2021),
    "GUM": ("Guam", 622.9, 2022), "GUY": ("Guyana", 640.4, 2022), "HKG": ("Hong Kong", 699.5, 2022),
    "HND": ("Honduras", 282.3, 2022), "HRV": ("Croatia", 205.0, 2023), "HTI": ("Haiti", 567.3, 2022),
    "HUN": ("Hungary", 204.2, 2023), "IDN": ("Indonesia", 675.9, 2022), "IND": ("India", 713.4, 2023),
    "IRL": ("Ireland", 290.8, 2023), "IRN": ("Iran", 655.1, 2023), "IRQ": ("Iraq", 688.8, 2022),
    "ISL": ("Iceland", 27.7, 2022), "ISR": ("Israel", 582.9, 2022), "ITA": ("Italy", 330.7, 2023),
    "JAM": ("Jamaica", 555.6, 2022), "JOR": ("Jordan", 540.9, 2022), "JPN": ("Japan", 485.4, 2023),
    "KAZ": ("Kazakhstan", 821.4, 2023), "KEN": ("Kenya", 70.5, 2023), "KGZ": ("Kyrgyzstan", 147.3, 2022),
    "KHM": ("Cambodia", 417.7, 2022), "KIR": ("Kiribati", 666.7, 2022),
    "KNA": ("Saint Kitts and Nevis", 636.4, 2022), "KOR": ("South Korea", 430.6, 2023),
    "KWT": ("Kuwait", 649.2, 2023), "LAO": ("Laos", 265.5, 2022), "LBN": ("Lebanon", 599.0, 2022),
    "LBR": ("Liberia", 227.8, 2022), "LBY": ("Libya", 818.7, 2022), "LCA": ("Saint Lucia", 666.7, 2022),
    "LKA": ("Sri Lanka", 509.8, 2022), "LSO": ("Lesotho", 20.0, 2022), "LTU": ("Lithuania", 160.1, 2023),
    "LUX": ("Luxembourg", 105.3, 2023), "LVA": ("Latvia", 123.2, 2023), "MAC": ("Macao", 449.0, 2022),
    "MAR": ("Morocco", 630.0, 2023), "MDA": ("Moldova", 643.5, 2023), "MDG": ("Madagascar", 436.4, 2022),
    "MDV": ("Maldives", 611.8, 2022), "MEX": ("Mexico", 507.2, 2023), "MKD": ("North Macedonia", 565.3, 2023),
    "MLI": ("Mali", 408.0, 2022), "MLT": ("Malta", 459.1, 2023), "MMR": ("Myanmar", 398.9, 2023),
    "MNE": ("Montenegro", 417.1, 2023), "MNG": ("Mongolia", 775.3, 2023), "MOZ": ("Mozambique", 135.6, 2022),
    "MRT": ("Mauritania", 464.7, 2022), "MSR": ("Montserrat", 1000.0, 2022), "MTQ": ("Martinique", 523.2, 2021),
    "MUS": ("Mauritius", 632.5, 2022), "MWI": ("Malawi", 66.7, 2022), "MYS": ("Malaysia", 605.8, 2022),
    "NAM": ("Namibia", 59.3, 2022), "NCL": ("New Caledonia", 660.6, 2022), "NER": ("Niger", 670.9, 2022),
    "NGA": ("Nigeria", 523.2, 2023), "NIC": ("Nicaragua", 265.1, 2022), "NLD": ("Netherlands", 267.6, 2023),
    "NOR": ("Norway", 30.1, 2023), "NPL": ("Nepal", 24.4, 2022), "NRU": ("Nauru", 750.0, 2022),
    "NZL": ("New Zealand", 112.8, 2023), "OMN": ("Oman", 564.6, 2023), "PAK": ("Pakistan", 440.6, 2023),
    "PAN": ("Panama", 161.7, 2022), "PER": ("Peru", 266.5, 2023), "PHL": ("Philippines", 610.7, 2023),
    "PNG": ("Papua New Guinea", 507.2, 2022), "POL": ("Poland", 661.9, 2023), "PRI": ("Puerto Rico", 678.7, 2022),
    "PRK": ("North Korea", 389.6, 2022), "PRT": ("Portugal", 165.6, 2023), "PRY": ("Paraguay", 23.8, 2023),
    "PSE": ("Palestine", 516.1, 2022), "PYF": ("French Polynesia", 442.9, 2022), "QAT": ("Qatar", 602.5, 2023),
    "REU": ("Reunion", 572.8, 2021), "ROU": ("Romania", 240.6, 2023), "RUS": ("Russia", 441.0, 2023),
    "RWA": ("Rwanda", 316.3, 2022), "SAU": ("Saudi Arabia", 706.8, 2022), "SDN": ("Sudan", 263.2, 2022),
    "SEN": ("Senegal", 511.6, 2022), "SGP": ("Singapore", 470.8, 2023), "SHN": ("Saint Helena", 1000.0, 2022),
    "SLB": ("Solomon Islands", 700.0, 2022), "SLE": ("Sierra Leone", 50.0, 2022),
    "SLV": ("El Salvador", 271.5, 2023), "SOM": ("Somalia", 578.9, 2022),
    "SPM": ("Saint Pierre and Miquelon", 600.0, 2022), "SRB": ("Serbia", 636.1, 2023),
    "SSD": ("South Sudan", 629.0, 2022), "STP": ("Sao Tome and Principe", 642.9, 2022),
    "SUR": ("Suriname", 349.3, 2022), "SVK": ("Slovakia", 116.8, 2023), "SVN": ("Slovenia", 231.3, 2023),
    "SWE": ("Sweden", 40.7, 2023), "SWZ": ("Eswatini", 172.4, 2022), "SYC": ("Seychelles", 564.5, 2022),
    "SYR": ("Syria", 701.7, 2022), "TCA": ("Turks and Caicos Islands", 653.8, 2022), "TCD": ("Chad", 628.6, 2022),
    "TGO": ("Togo", 443.2, 2022), "THA": ("Thailand", 549.6, 2023), "TJK": ("Tajikistan", 116.9, 2022),
    "TKM": ("Turkmenistan", 1306.0, 2022), "TLS": ("East Timor", 666.7, 2022), "TON": ("Tonga", 625.0, 2022),
    "TTO": ("Trinidad and Tobago", 681.5, 2022), "TUN": ("Tunisia", 564.0, 2023), "TUR": ("Turkey", 464.6, 2023),
    "TWN": ("Taiwan", 642.4, 2023), "TZA": ("Tanzania", 339.2, 2022), "UGA": ("Uganda", 44.5, 2022),
    "UKR": ("Ukraine", 259.7, 2022), "URY": ("Uruguay", 128.8, 2023), "USA": ("United States", 369.5, 2023),
    "UZB": ("Uzbekistan", 1167.6, 2022), "VCT": ("Saint Vincent and the Grenadines", 529.4, 2022),
    "VEN": ("Venezuela", 185.8, 2022), "VGB": ("British Virgin Islands", 647.1, 2022),
    "VIR": ("United States Virgin Islands", 632.4, 2022), "VNM": ("Vietnam", 475.4, 2023),
    "VUT": ("Vanuatu", 571.4, 2022), "WSM": ("Samoa", 473.7, 2022), "YEM": ("Yemen", 566.1, 2022),
    "ZAF": ("South Africa", 707.7, 2023), "ZMB": ("Zambia", 112.0, 2022), "ZWE": ("Zimbabwe", 297.9, 2022),
}  # fmt: skip
GRID = {code: Grid(*figures) for code, figures in _FIGURES.items()}
"""By ISO 3166-1 alpha-3 code."""
